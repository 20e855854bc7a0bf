"""Names of spans, attributes and metrics: OpenTelemetry's `gen_ai.*` where there is one, `holdfast.*` for the rest.

https://opentelemetry.io/docs/specs/semconv/gen-ai/ (the conventions are still experimental; they are pinned here).
"""

INSTRUMENTATION = "holdfast"

# The specification's fields, on every span that knows them.
RUN_ID = "holdfast.run_id"
THREAD_ID = "holdfast.thread_id"
TENANT_ID = "holdfast.tenant_id"
AGENT_NAME = "holdfast.agent_name"
NODE_NAME = "holdfast.node_name"
MODEL = "holdfast.model"
TOOL_NAME = "holdfast.tool_name"
POLICY_VERSION = "holdfast.policy_version"
PROMPT_VERSION = "holdfast.prompt_version"
CHECKPOINT_ID = "holdfast.checkpoint_id"
COST_USD = "holdfast.cost_usd"
LATENCY_MS = "holdfast.latency_ms"
ERROR_TYPE = "holdfast.error_type"

# Ours besides.
GRAPH_NAME = "holdfast.graph_name"
ATTEMPT = "holdfast.attempt"
DEADLINE_MS = "holdfast.deadline_ms"
TASK_ID = "holdfast.task_id"
STATUS = "holdfast.status"
REPLAYED = "holdfast.replayed"
"""The journal answered: nothing was sent and nothing was paid."""
INTERRUPTED = "holdfast.interrupted"
"""The node stopped to ask a person, or another engine's signal passed through it: not a failure."""
TOKENS_USED = "holdfast.tokens_used"
MODEL_CALLS = "holdfast.model_calls"
TOOL_CALLS = "holdfast.tool_calls"
CALL_KIND = "holdfast.call_kind"
DROP_REASON = "holdfast.drop_reason"

# OpenTelemetry's.
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
CONVERSATION_ID = "gen_ai.conversation.id"
GEN_AI_AGENT_NAME = "gen_ai.agent.name"
WORKFLOW_NAME = "gen_ai.workflow.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
TOKEN_TYPE = "gen_ai.token.type"  # noqa: S105  # a name, no secret
GEN_AI_TOOL_NAME = "gen_ai.tool.name"
TOOL_CALL_ID = "gen_ai.tool.call.id"
OTEL_ERROR_TYPE = "error.type"
EXCEPTION_TYPE = "exception.type"

# Content, only where it is asked for.
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
TOOL_RESULT = "gen_ai.tool.call.result"
EXCEPTION_MESSAGE = "exception.message"

# Metrics.
RUNS = "holdfast.runs"
CALLS = "holdfast.calls"
COST = "holdfast.cost"
DROPPED = "holdfast.telemetry.dropped"
TOKEN_USAGE = "gen_ai.client.token.usage"  # noqa: S105  # a name, no secret
OPERATION_DURATION = "gen_ai.client.operation.duration"
