"""The registry: trained models as immutable numbered versions, their aliases, imports by conversion, and Reports."""
