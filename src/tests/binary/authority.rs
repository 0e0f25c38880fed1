//! Certificates, good and bad, as files; and both ends of TLS with them.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::recorder::OK;

/// The name in good certificates.
pub(crate) const NAME: &str = "localhost";

/// One who issues certificates, and a folder with them.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new([]).expect("no names are good names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two authorities are not to be mistaken for each other.
        let name = format!("authority {}", rand::random::<u64>());
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("there is randomness");
        let own = params.self_signed(&key).expect("it can be signed");
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        std::fs::write(folder.path().join("ca"), own.pem()).expect("it can be written");
        Authority {
            issuer: Issuer::new(params, key),
            folder,
        }
    }

    /// The certificate of the authority itself.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca")
    }

    /// A folder for whatever a test needs.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A good certificate for [`NAME`].
    pub(crate) fn good(&self) -> Files {
        self.issue("good", NAME, |_| {})
    }

    /// A certificate for `name` in files of this folder, after `change`.
    pub(crate) fn issue(
        &self,
        folder: &str,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Files {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a good name");
        change(&mut params);
        let key = KeyPair::generate().expect("there is randomness");
        let cert = params
            .signed_by(&key, &self.issuer)
            .expect("it can be signed");
        let folder = self.folder.path().join(folder);
        std::fs::create_dir_all(&folder).expect("it can be made");
        let files = Files {
            cert: folder.join("tls.crt"),
            key: folder.join("tls.key"),
        };
        std::fs::write(&files.cert, cert.pem()).expect("it can be written");
        std::fs::write(&files.key, key.serialize_pem()).expect("it can be written");
        files
    }

    /// A certificate that was good until some years ago.
    pub(crate) fn expired(&self) -> Files {
        self.issue("expired", NAME, |params| {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        })
    }

    /// What a caller needs who trusts this authority, speaks `alpn` and shows `own`.
    pub(crate) fn client(&self, alpn: &[&[u8]], own: Option<&Files>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(self.ca()).expect("it was written") {
            roots
                .add(certificate.expect("it is PEM"))
                .expect("it is a certificate");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_root_certificates(roots);
        let mut client = match own {
            Some(files) => {
                let (chain, key) = files.read();
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
            None => builder.with_no_client_auth(),
        };
        client.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        client
    }
}

impl Files {
    fn read(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_file_iter(&self.cert).expect("it was written");
        let chain = chain.collect::<Result<_, _>>().expect("it is PEM");
        let key = PrivateKeyDer::from_pem_file(&self.key).expect("it is a key");
        (chain, key)
    }

    /// As settings of the traffic port.
    pub(crate) fn settings(&self) -> [String; 2] {
        [
            format!("listen.tls.cert={}", self.cert.display()),
            format!("listen.tls.key={}", self.key.display()),
        ]
    }
}

/// A caller's connection.
pub(crate) enum Caller {
    Http1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Http2(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

impl Caller {
    /// Connects by TLS and speaks what both sides agree on.
    pub(crate) async fn by_tls(address: SocketAddr, client: ClientConfig) -> io::Result<Caller> {
        let stream = TcpStream::connect(address).await?;
        let name = NAME.try_into().expect("a good name");
        let tls = TlsConnector::from(Arc::new(client));
        let stream = tls.connect(name, stream).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Caller::over(stream, http2).await
    }

    /// Connects without TLS and speaks HTTP/2 at once.
    pub(crate) async fn by_prior_knowledge(address: SocketAddr) -> Caller {
        let stream = TcpStream::connect(address).await.expect("somebody listens");
        Caller::over(stream, true).await.expect("it speaks HTTP/2")
    }

    async fn over<IO>(io: IO, http2: bool) -> io::Result<Caller>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(io);
        if http2 {
            let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
            let (caller, connection) = made.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok(Caller::Http2(caller))
        } else {
            let made = hyper::client::conn::http1::handshake(io).await;
            let (caller, connection) = made.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok(Caller::Http1(caller))
        }
    }

    pub(crate) fn speaks_http2(&self) -> bool {
        matches!(self, Caller::Http2(_))
    }

    /// Posts `body` and reads the answer.
    pub(crate) async fn post(
        &mut self,
        target: &str,
        body: &str,
    ) -> Result<Response<String>, hyper::Error> {
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        let (uri, host) = if self.speaks_http2() {
            (format!("https://{NAME}{target}"), None)
        } else {
            (target.to_owned(), Some(NAME))
        };
        let mut request = Request::post(uri).body(body).expect("a legal request");
        if let Some(host) = host {
            let host = host.parse().expect("a legal value");
            request.headers_mut().insert("host", host);
        }
        let response = match self {
            Caller::Http1(caller) => {
                caller.ready().await?;
                caller.send_request(request).await?
            }
            Caller::Http2(caller) => {
                caller.ready().await?;
                caller.send_request(request).await?
            }
        };
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let text = String::from_utf8(body.to_vec()).expect("text");
        Ok(Response::from_parts(parts, text))
    }

    /// Whether the connection is at its end.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Caller::Http1(caller) => caller.is_closed(),
            Caller::Http2(caller) => caller.is_closed(),
        }
    }
}

/// An upstream behind TLS that takes every call and notes its head.
pub(crate) struct TlsUpstream {
    pub(crate) address: SocketAddr,
    pub(crate) requests: Arc<Mutex<Vec<Request<Bytes>>>>,
    _tasks: JoinSet<()>,
}

impl TlsUpstream {
    pub(crate) async fn start(files: &Files, alpn: &[&[u8]]) -> TlsUpstream {
        let (chain, key) = files.read();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a pair");
        server.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let notes = requests.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, notes) = (acceptor.clone(), notes.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(|request: Request<Incoming>| {
                        let notes: Arc<Mutex<Vec<Request<Bytes>>>> = notes.clone();
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await?.to_bytes();
                            notes.lock().push(Request::from_parts(parts, body));
                            Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(OK))))
                        }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    // A gateway that leaves is no failure.
                    let _ = builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        TlsUpstream {
            address,
            requests,
            _tasks: tasks,
        }
    }

    /// Its address as the gateway's `upstream.url`.
    pub(crate) fn url(&self) -> String {
        format!("https://{NAME}:{}", self.address.port())
    }
}
