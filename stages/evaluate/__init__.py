"""What the policy has gained and paid: held-out pairs, and what policy and reference write to the same prompts."""
