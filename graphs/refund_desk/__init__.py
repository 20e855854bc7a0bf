"""The worked example: a refund desk with a supervisor, three specialists, and money that a person may have to release.

`graph` takes `{"email": str}` and returns the decision, what became of the refund, and the reply. `sample(name)` reads
one of three e-mails. The outside ledger that refunds are paid from is `store.ledger()`.
"""

from holdfast.graphs.refund_desk.desk import graph
from holdfast.graphs.refund_desk.samples import NAMES as SAMPLES
from holdfast.graphs.refund_desk.samples import sample

__all__ = ["SAMPLES", "graph", "sample"]
