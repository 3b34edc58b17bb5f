"""How many examples the property tests draw: the environment variable CERTBOUND_PROFILE says.

=======  ======  ========  ================================================
profile  matrix  network   when
=======  ======  ========  ================================================
quick       200        20  while writing, and for every mutation
ci        2,000       100  every change (the default)
deep    100,000     5,000  by hand, before a release
=======  ======  ========  ================================================

``@matrix_settings`` goes on tests that cost about a millisecond an example, ``@network_settings`` on those that solve
something.
"""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings

MATRIX_EXAMPLES: Final = {"quick": 200, "ci": 2_000, "deep": 100_000}
NETWORK_EXAMPLES: Final = {"quick": 20, "ci": 100, "deep": 5_000}

PROFILE: Final = os.environ.get("CERTBOUND_PROFILE", "ci")
if PROFILE not in MATRIX_EXAMPLES:
    raise ValueError(f"CERTBOUND_PROFILE: got {PROFILE!r}; needed one of {', '.join(MATRIX_EXAMPLES)}")

for _name, _examples in NETWORK_EXAMPLES.items():
    settings.register_profile(
        _name,
        max_examples=_examples,
        deadline=None,  # shared machines stall
        derandomize=False,  # every run draws new examples; the printed blob reproduces a failure
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(PROFILE)

matrix_settings = settings(max_examples=MATRIX_EXAMPLES[PROFILE])
network_settings = settings(max_examples=NETWORK_EXAMPLES[PROFILE])
