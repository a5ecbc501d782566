"""The script that `r2viz app` hands to Streamlit."""

from r2viz.web.compare import main

main()
