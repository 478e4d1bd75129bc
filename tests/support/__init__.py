"""Real processes and raw sockets for tests that go through the public door."""
