"""An update comes in: what it counts as, for whom, and what a refused user is told."""
