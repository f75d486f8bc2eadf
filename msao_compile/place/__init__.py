"""Placement: which device holds which module, so that requests are answered soonest, with a certificate."""
