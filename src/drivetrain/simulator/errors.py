"""What can go wrong with the simulator itself, as opposed to the failures that it plays on purpose."""


class SimulatorError(Exception):
    """The simulator cannot do what was asked; the message says what to do."""


class SimulatorConfigError(SimulatorError):
    """The simulator's TOML has mistakes; all of them are in the message and in `mistakes`."""

    def __init__(self, where: str, mistakes: list[str]) -> None:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        listed = "\n".join(f"{number}. {mistake}" for number, mistake in enumerate(mistakes, start=1))
        super().__init__(f"{where} has {count}:\n{listed}")
        self.mistakes = tuple(mistakes)


class ProcessNotReady(SimulatorError):
    """A simulator process ended, or stayed silent, before it was ready."""
