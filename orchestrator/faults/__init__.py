"""Failures and the reaction to them: the budget of losses, the watchdog, fault injection."""
