"""The ZeRO-3 ranks as one Learner; DeepSpeed in one file; the target builder."""
