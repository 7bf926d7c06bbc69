"""The time that tests give to what must happen at all."""

__all__ = ["PATIENCE"]

# A bound against hanging, never a claim about speed: a machine ten times slower than usual must stay within it.
PATIENCE = 120.0  # seconds
