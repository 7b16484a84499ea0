"""From words to values: configs composed, checked, and made into objects."""
