"""What all tests share: reproducible property tests where nobody watches."""

import os

from hypothesis import settings

# In CI the examples are a function of the test alone: a red run is red again when repeated.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI") == "true":
    settings.load_profile("ci")
