"""A consumer that trusts the inbox blindly, beside the shop's, which would find out by themselves."""
