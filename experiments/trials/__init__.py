"""Long forms of the tests of what must never be lost: each prints how many trials there were, and what failed."""
