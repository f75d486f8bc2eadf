"""The report page: read the evidence, lay out the pictures, fill the template."""
