"""nibabel is imported without pydicom, and uses it all the same when a header holds DICOM data."""

import subprocess
import sys

CODE = """
import sys
import medseg.volumes
assert "nibabel" in sys.modules and "pydicom" not in sys.modules
import nibabel as nib
import numpy as np
image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
data = bytes.fromhex("1000100008000000") + b"Doe^Jane"
image.header.extensions.append(nib.nifti1.Nifti1DicomExtension(2, data))
read = nib.Nifti1Image.from_bytes(image.to_bytes())
content = read.header.extensions[0].get_content()
import pydicom
assert isinstance(content, pydicom.Dataset), content
print(content.PatientName)
"""


def test_headers_with_dicom_data_are_read() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["Doe^Jane"], done.stderr
