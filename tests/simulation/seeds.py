"""The seeds that run with every change, and what they find when a defence is missing."""

SEEDS = (*range(4000, 4040), 5334, 24134)
"""Forty in a row, the stated minimum, and two that stop a worker right before an effect that must not happen twice."""
FOUND_BY = {
    "no_fence": (4000, 4007, 4001),
    "same_epoch": (4001,),
    "always_ours": (5334, 24134),
    "no_intent": (4000, 4002, 4006),
    "resend_instead_of_reconcile": (4020, 4015),
    "check_then_reserve": (4000, 4002, 4006),
    "settle_in_a_second_commit": (4000, 4007, 4001),
    "grant_not_used_up": (4000, 4002, 4005),
    "no_answers_from_the_journal": (4006, 4019),
}
"""Which of them notice that a defence is missing: they come first, to be quick."""
EVIDENCE = {
    "no_fence": "a_stale_worker_left_no_trace| forks after ",
    "same_epoch": "a_stale_worker_left_no_trace| forks after ",
    "always_ours": "was done 2 times",
    "no_intent": "tool calls arrived|counted as spent|was done 2 times",
    "resend_instead_of_reconcile": "was done 2 times",
    "check_then_reserve": "a_limit_is_passed|tool calls arrived",
    "settle_in_a_second_commit": "reserved_is_what_open_calls_reserved|spent_is_what_calls_used",
    "grant_not_used_up": "a_call_acts_on_a_grant",
    "no_answers_from_the_journal": "was done 2 times",
}
"""What of it counts as having found just that."""
