"""Example of a plug-in of hpcq: a quantizer and a back end."""
