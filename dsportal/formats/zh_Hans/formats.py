"""Where Django's formats for Simplified Chinese are not what people write: 12,345 and not 12345, as the charts and the scripts have it."""

THOUSAND_SEPARATOR = ","
NUMBER_GROUPING = 3
