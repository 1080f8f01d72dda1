//! How long a certificate is good, and when it is time for the next one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{prelude::FromDer, time::ASN1Time};

/// The time between a certificate's two dates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Validity {
    /// Of the first certificate in a PEM text; `None` if there is none.
    pub fn of_pem(pem: &str) -> Option<Self> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&der).ok()?;
        let time = |time: ASN1Time| {
            let since_epoch = Duration::from_secs(u64::try_from(time.timestamp()).ok()?);
            Some(UNIX_EPOCH + since_epoch)
        };
        let validity = certificate.validity();
        Some(Self { not_before: time(validity.not_before)?, not_after: time(validity.not_after)? })
    }

    /// When this share of the time is over: 0 at its beginning, 1 at its end.
    pub fn after(&self, share: f64) -> SystemTime {
        let whole = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + whole.mul_f64(share.clamp(0.0, 1.0))
    }

    /// The time in which both certificates are good, if they have the same beginning.
    pub fn both(self, other: Self) -> Self {
        if self.not_after <= other.not_after { self } else { other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Pki, Profile};

    #[test]
    fn a_share_of_a_life_is_a_time() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let validity = Validity { not_before: at(1000), not_after: at(2000) };
        for (share, expect) in [(0.0, 1000), (0.7, 1700), (1.0, 2000), (7.0, 2000)] {
            assert_eq!(validity.after(share), at(expect), "{share}");
        }
    }

    /// However short its life, most of it is still to come when a certificate is issued.
    #[test]
    fn a_fresh_certificate_is_not_due() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let pki = Pki::open(dir.path(), Duration::from_secs(60)).expect("keys");
        for seconds in [60, 3600, 365 * 24 * 3600] {
            let profile = Profile::client("someone", None, Duration::from_secs(seconds));
            let issued = pki.authority.issue(&profile).expect("a certificate");
            let validity = Validity::of_pem(&issued.certificate_pem).expect("two dates");
            let now = SystemTime::now();
            assert!(validity.not_before < now, "{seconds} s: good at once");
            assert!(validity.after(0.7) > now + Duration::from_secs(seconds / 2), "{seconds} s: not due");
        }
        assert_eq!(Validity::of_pem("nothing"), None);
    }
}
