"""Erasure: what is known of a person is destroyed everywhere, with a receipt."""
