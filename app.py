"""The app: `streamlit run app.py`, or `r2viz app`. Everything is in `r2viz.web`."""

from r2viz.web.compare import main

main()
