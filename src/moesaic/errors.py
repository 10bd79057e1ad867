"""Every error that moesaic raises on purpose.

    MoesaicError                 exit code 1
    ├── UsageError               exit code 2: the command asked for something that cannot be
    │   ├── UnknownName          no rule, allocator, quantizer, … of that name (says the nearest)
    │   ├── BudgetInfeasible     no plan reaches the budget (says the reachable interval)
    │   └── OutputExists         the target folder is there already
    ├── NotACheckpoint           the folder does not hold a Hugging Face checkpoint
    ├── UnsupportedModel         an architecture or a variant moesaic cannot compress (says what is missing)
    ├── CorruptFile              a file contradicts itself, its index or its recorded hash
    ├── InvalidPlan              a plan does not fit the model, or contradicts itself
    ├── NotFinite                weights or statistics that hold NaN or infinity
    ├── InvalidPolicy            a skipping policy that does not fit the model it is used for
    ├── InvalidText              text that cannot be read, or too little of it
    ├── InvalidTask              an evaluation set with a line that is not of its format
    ├── JobMismatch              an unfinished run in the work folder was started with other options
    ├── StorageFull              the disk has no room for the output
    ├── TrainingFailed           training met NaN before there was a good state to keep
    └── KernelUnavailable        the kernel backend asked for cannot run here

A message names the file, tensor or option, the value found, and the remedy.
"""


class MoesaicError(Exception):
    """Base of all errors that moesaic raises on purpose."""

    exit_code = 1


class UsageError(MoesaicError):
    """The command asked for something that cannot be done as asked."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not registered."""


class BudgetInfeasible(UsageError):
    """No plan can meet the budget.

    Attributes:
        interval: the budgets in code bits that can be met, where they are an interval.
    """

    def __init__(self, message: str, interval: tuple[float, float] | None = None) -> None:
        super().__init__(message)
        self.interval = interval


class OutputExists(UsageError):
    """The target of the output exists and may not be replaced."""


class NotACheckpoint(MoesaicError):
    """The folder is not a Hugging Face checkpoint in safetensors form."""


class UnsupportedModel(MoesaicError):
    """The architecture, or this variant of it, is not supported."""


class CorruptFile(MoesaicError):
    """A file is damaged, incomplete or inconsistent."""


class InvalidPlan(MoesaicError):
    """A bit plan that contradicts itself or the model it is used for."""


class NotFinite(MoesaicError):
    """Numbers that hold NaN or infinity where a computation needs all of them."""


class InvalidPolicy(MoesaicError):
    """A skipping policy that was made for another model, or that this model cannot run."""


class InvalidText(MoesaicError):
    """A text that cannot be read as UTF-8 or holds too few tokens."""


class InvalidTask(MoesaicError):
    """An evaluation set that cannot be read, or a line of it that is not of the format."""


class JobMismatch(MoesaicError):
    """An unfinished run lies in the work folder and belongs to another command."""


class StorageFull(MoesaicError):
    """The disk has no room for the output."""


class TrainingFailed(MoesaicError):
    """Training could not go on, and there is nothing good to keep."""


class KernelUnavailable(MoesaicError):
    """The kernel backend asked for cannot run on this machine."""
