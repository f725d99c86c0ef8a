"""Training of the joint network: rollout over clips, one visible loop, resumable checkpoints."""
