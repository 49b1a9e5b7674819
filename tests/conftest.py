"""Settings that all tests share."""

from hypothesis import HealthCheck, settings

# The same examples on every run: a red build means a change in the code, and can be had again.
settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fixed")
