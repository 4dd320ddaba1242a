"""The web server of a coordinator: health, metrics, a JSON API, and a page to look at."""
