"""`inrecon bench quality`: image quality of inrecon's methods and of BART's on scans undersampled afterwards."""
