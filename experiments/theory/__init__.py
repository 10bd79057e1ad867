"""The analysed model of Chowdhury et al. (ICLR 2026, arXiv 2604.06515), made so that its claims can be checked."""
