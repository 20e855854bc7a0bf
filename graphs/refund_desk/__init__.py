"""The worked example: a refund desk with a supervisor, three specialists, and money that a person may have to release.

`graph` takes `{"email": str}` and returns the decision, what became of the refund, and the reply. `POLICY` is its
Cedar policy; `samples` has three e-mails; `store` is the outside ledger that refunds are paid from.
"""

from importlib.resources import files

from holdfast.graphs.refund_desk.desk import graph
from holdfast.graphs.refund_desk.samples import NAMES as SAMPLES
from holdfast.graphs.refund_desk.samples import sample

POLICY = (files(__package__) / "policy.cedar").read_text(encoding="utf-8")

__all__ = ["POLICY", "SAMPLES", "graph", "sample"]
