"""The specification's contracts keep its field names."""

import pytest

from holdfast.contracts.errors import RuntimeErrorRecord
from holdfast.contracts.limits import Limits, Usage
from holdfast.contracts.models import ModelRequest, ModelResponse
from holdfast.contracts.runs import RunClaim, RunIdentity, RunResult
from holdfast.contracts.tenancy import TenantContext
from holdfast.contracts.tools import AllowedCommand, ToolRequest, ToolResult


@pytest.mark.parametrize(
    ("contract", "fields"),
    [
        (RunIdentity, "run_id thread_id tenant_id deadline_ms policy_version"),
        (RunResult, "status output next_action"),
        (RunClaim, "run_id worker_id claimed_until heartbeat_at"),
        (Limits, "max_model_calls max_tool_calls max_tokens max_cost_usd"),
        (Usage, "model_calls tool_calls tokens_used cost_usd"),
        (AllowedCommand, "command_name args"),
        (
            ModelRequest,
            "run_id agent_name model_policy messages temperature max_tokens response_schema deadline",
        ),
        (ModelResponse, "provider model content input_tokens output_tokens cost_usd raw_response_ref"),
        (ToolRequest, "run_id tool_call_id tool_name input idempotency_key deadline"),
        (ToolResult, "tool_call_id status output error_type error_message"),
        (TenantContext, "tenant_id user_id roles data_scopes policy_version"),
        (RuntimeErrorRecord, "run_id step_name error_type retryable message metadata"),
    ],
)
def test_a_contract_has_the_specifications_fields(contract, fields):
    assert set(fields.split()) <= set(contract.model_fields)
