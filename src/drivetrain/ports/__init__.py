"""Protocols for everything replaceable; each has a conformance suite that its adapters pass."""
