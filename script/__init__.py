"""What `script/*` run: programs for people, and the private services they and the tests stand on."""
