//! What rustls makes of certificates and keys in files: for callers on the traffic port, and for the
//! upstream. TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN. Files are re-read when they change
//! ([`FromFiles`]); connections that are open stay as they are.

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper_rustls::ConfigBuilderExt as _;
use rustls::{
    ClientConfig, Error, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use crate::{
    config::{Scheme, Tls},
    watch::FromFiles,
};

/// What callers are met with; `None` if they come by plain HTTP.
///
/// # Errors
///
/// A file that cannot be used, by its setting, its path and what is wrong.
pub fn for_callers(tls: &Tls) -> io::Result<Option<FromFiles<ServerConfig>>> {
    let Tls {
        cert: Some(cert),
        key: Some(key),
        client_ca,
    } = tls.clone()
    else {
        return Ok(None);
    };
    let paths: Vec<PathBuf> = [Some(cert.clone()), Some(key.clone()), client_ca.clone()]
        .into_iter()
        .flatten()
        .collect();
    let make = move || server(&cert, &key, client_ca.as_deref());
    FromFiles::read("listen.tls", paths, make).map(Some)
}

/// What the upstream is trusted by: the certificates of `ca`, or the usual ones.
///
/// # Errors
///
/// A file that cannot be used, by its setting, its path and what is wrong.
pub fn for_upstream(ca: Option<PathBuf>, scheme: Scheme) -> io::Result<FromFiles<ClientConfig>> {
    let paths: Vec<PathBuf> = ca.iter().cloned().collect();
    let make = move || client(ca.as_deref(), scheme);
    FromFiles::read("upstream.ca", paths, make)
}

/// Why a handshake failed: what [`cause`] says, and `timeout`.
pub const CAUSES: [&str; 7] = [
    "no_certificate",
    "bad_certificate",
    "incompatible",
    "alert",
    "not_tls",
    "broken_off",
    "timeout",
];

/// Why a handshake failed, in one word of few, for a metric.
pub fn cause(error: &io::Error) -> &'static str {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(Error::NoCertificatesPresented) => "no_certificate",
        Some(Error::InvalidCertificate(_)) => "bad_certificate",
        Some(Error::PeerIncompatible(_)) => "incompatible",
        Some(Error::AlertReceived(_)) => "alert",
        Some(_) => "not_tls",
        None => "broken_off",
    }
}

fn server(cert: &Path, key: &Path, client_ca: Option<&Path>) -> io::Result<ServerConfig> {
    let chain = certificates("listen.tls.cert", cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
        pem::Error::NoItemsFound => wrong("listen.tls.key", key, &"it holds no private key"),
        error => wrong("listen.tls.key", key, &readable(&error)),
    })?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = match client_ca {
        Some(file) => {
            let roots = Arc::new(roots("listen.tls.client_ca", file)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            let verifier = verifier.map_err(|e| wrong("listen.tls.client_ca", file, &e))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut server = builder
        .with_single_cert(chain, private)
        .map_err(|error| match error {
            Error::InconsistentKeys(_) => {
                let other = format!(
                    "it is not the key of the certificate in listen.tls.cert, {}",
                    cert.display()
                );
                wrong("listen.tls.key", key, &other)
            }
            Error::InvalidCertificate(_) => wrong("listen.tls.cert", cert, &error),
            error => wrong("listen.tls.key", key, &error),
        })?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(server)
}

fn client(ca: Option<&Path>, scheme: Scheme) -> io::Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = match ca {
        Some(file) => builder.with_root_certificates(roots("upstream.ca", file)?),
        // The store of a system is large, and nobody is met by TLS.
        None if scheme == Scheme::Http => builder.with_root_certificates(RootCertStore::empty()),
        // Images without a certificate store get Mozilla's, which is built in.
        None => match builder.clone().with_native_roots() {
            Ok(builder) => builder,
            Err(_) => builder.with_webpki_roots(),
        },
    };
    Ok(builder.with_no_client_auth())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(setting: &str, file: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(setting, file)? {
        roots
            .add(certificate)
            .map_err(|e| wrong(setting, file, &e))?;
    }
    Ok(roots)
}

fn certificates(setting: &str, file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(setting, file, &readable(&error)))?;
    if certificates.is_empty() {
        return Err(wrong(setting, file, &"it holds no certificate"));
    }
    Ok(certificates)
}

/// What is wrong with a PEM file. The library shows pieces of the file in some of its errors, and
/// the file may hold a key.
fn readable(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => format!("it cannot be read: {error}"),
        _ => "it is not PEM: a base64 block between BEGIN and END lines is expected".to_owned(),
    }
}

fn wrong(setting: &str, file: &Path, what: &dyn Display) -> io::Error {
    io::Error::other(format!("{setting}: {}: {what}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }
    }

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["gateway.test".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn what_cannot_be_used_should_be_named_by_setting_file_and_reason() {
        let folder = Folder(tempfile::tempdir().unwrap());
        let ((cert, key), (_, other)) = (pair(), pair());
        let cert = folder.write("cert", &cert);
        let key = folder.write("key", &key);
        let other = folder.write("other", &other);
        let empty = folder.write("empty", "");
        let torn = folder.write("torn", "-----BEGIN PRIVATE KEY-----\nSECRET\n");
        let nowhere = folder.0.path().join("nowhere");
        assert!(server(&cert, &key, Some(&cert)).is_ok());
        let check = |cert: &Path, key: &Path, ca: Option<&Path>, setting: &str, reason: &str| {
            let error = server(cert, key, ca).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{setting}: ")), "{error}");
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("SECRET"), "{error}");
        };
        check(
            &nowhere,
            &key,
            None,
            "listen.tls.cert",
            "nowhere: it cannot be read: No such file",
        );
        check(
            &empty,
            &key,
            None,
            "listen.tls.cert",
            "empty: it holds no certificate",
        );
        check(
            &key,
            &key,
            None,
            "listen.tls.cert",
            "key: it holds no certificate",
        );
        check(
            &cert,
            &nowhere,
            None,
            "listen.tls.key",
            "nowhere: it cannot be read: No such file",
        );
        check(
            &cert,
            &empty,
            None,
            "listen.tls.key",
            "empty: it holds no private key",
        );
        check(&cert, &torn, None, "listen.tls.key", "torn: it is not PEM");
        check(
            &cert,
            &other,
            None,
            "listen.tls.key",
            "it is not the key of the certificate in",
        );
        check(
            &cert,
            &key,
            Some(&empty),
            "listen.tls.client_ca",
            "it holds no certificate",
        );
        for (file, reason) in [
            (&empty, "it holds no certificate"),
            (&nowhere, "cannot be read"),
        ] {
            let error = client(Some(file), Scheme::Https).unwrap_err().to_string();
            assert!(error.starts_with("upstream.ca: "), "{error}");
            assert!(error.contains(reason), "{error}");
        }
    }
}
