"""OpenVLA-OFT: architecture, checkpoint folder, pre- and post-processing, LoRA slots."""
