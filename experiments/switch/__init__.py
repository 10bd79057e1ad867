"""Switch Transformer, the first setting of Chowdhury et al. (ICLR 2026): pretrain, fine-tune, quantize, compare."""
