"""The thresholds behind the figures, which the record states. No torch here: tables and figures need none."""

GROUPS = ("prevalent", "rarer", "both", "none")  # what experts learned
ROLE_RATIO = 2.0  # value on the own feature over the largest on an irrelevant pattern, from which it is learned
LEARNT = 0.01  # balanced error in full precision, mean over seeds, at which a task counts as learnt
TOLERATED = 0.005  # rise of the balanced error that counts as none
NOISE_LIMIT = 1 / 32  # noise over mean margin for bits that need not be whole; one bit is no grid, so well above it
RATIO_WIDTH = 4  # bits at which the noise of two groups is compared
RANDOM_PLANS = 3  # a seed
ZETA = 3.0  # of the reordering by MaxVar
