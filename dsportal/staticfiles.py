"""How static files are stored: each under a name that holds its hash, so that browsers may keep it for ever."""

from whitenoise.storage import CompressedManifestStaticFilesStorage


class StaticFiles(CompressedManifestStaticFilesStorage):
    """ES modules import each other by those names as well: otherwise a browser would go on with the old ones after an upgrade."""

    support_js_module_import_aggregation = True

    def create_compressor(self, **how):
        """Gzip alone, also where brotli is installed for something else: it took the first start half a minute."""
        return super().create_compressor(use_brotli=False, **how)
