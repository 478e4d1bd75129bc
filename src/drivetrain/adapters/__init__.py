"""What the ports are made of: one file per store, transport or vendor; imports only ports and core."""
