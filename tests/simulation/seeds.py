"""The seeds that run with every change, and what they find when a defence is missing."""

MINIMUM = 40
"""So many random schedules at the least are performed with every change."""
SEEDS = (*range(4000, 4000 + MINIMUM), 4738, 5790, 7061, 23196, 29587, 39265, 50515, 64581, 93724)
"""As many in a row, two in which the database is restarted in the middle of the work, four that stop or kill both
workers where a missing defence shows (right before an effect, after one whose answer is lost, or before a write), and
three in which it is the database's answer that is lost: two of a transaction, one of a flush."""
FOUND_BY = {
    "no_fence": (4024, 4030, 4009, 23196),
    "same_epoch": (4024, 4030, 4031),
    "no_memory_of_flushes": (93724, 39265),
    "always_ours": (29587, 39265),
    "no_intent": (4002, 4000, 4006),
    "resend_instead_of_reconcile": (7061, 4000, 4007),
    "check_then_reserve": (4002, 4000, 4006),
    "settle_in_a_second_commit": (4010, 4000, 4007),
    "grant_not_used_up": (4002, 4000, 4005),
    "no_answers_from_the_journal": (4035, 4007),
}
"""Which of them notice that a defence is missing: they come first, to be quick."""
EVIDENCE = {
    "no_fence": "a_stale_worker_left_no_trace| forks after ",
    "same_epoch": "a_stale_worker_left_no_trace| forks after ",
    "no_memory_of_flushes": r"has \S+ #\d+ again as #\d+",
    "always_ours": r"was done \d times",
    "no_intent": r"tool calls arrived|counted as spent|was done \d times",
    "resend_instead_of_reconcile": r"was done \d times",
    "check_then_reserve": "a_limit_is_passed|tool calls arrived",
    "settle_in_a_second_commit": "reserved_is_what_open_calls_reserved|spent_is_what_calls_used",
    "grant_not_used_up": "a_call_acts_on_a_grant",
    "no_answers_from_the_journal": r"was done \d times",
}
"""What of it counts as having found just that."""
