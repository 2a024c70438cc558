"""Where Django's formats for Simplified Chinese are not what people write: 12,345 and not 1,2345, as the charts and the scripts have it."""

NUMBER_GROUPING = 3
