"""What is done with an answer: decision tables and functions, compiled, checked and run."""

from drivetrain.policies.compile import CompiledPolicy, as_policy, compile_policy
from drivetrain.policies.verdict import PolicyFailed, Verdict

__all__ = ["CompiledPolicy", "PolicyFailed", "Verdict", "as_policy", "compile_policy"]
