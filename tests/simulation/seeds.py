"""The seeds that run with every change."""

FIRST_SEED = 4000
SCHEDULES = 40
"""The stated minimum."""
FOUND_BY = {
    "no_fence_in_transactions": (4000, 4032, 4024),
    "no_fence_in_flushes": (4032, 4024, 4017),
    "always_ours": (4003, 4031),
    "no_intent": (4000, 4028),
    "resend_instead_of_reconcile": (4038, 4015, 4017),
    "check_then_reserve": (4000, 4002, 4028),
    "settle_in_a_second_commit": (4010, 4005, 4006),
    "grant_not_used_up": (4014, 4019, 4020),
}
"""Which of them notice that a defence is missing: tried first, to be quick."""
