"""The commands of `drivetrain`, one file each; with the gateway the only room that wires adapters to ports."""
