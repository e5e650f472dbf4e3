//! A running server: listener, connections, shutdown.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::access_log::AccessLog;
use crate::answer::Peer;
use crate::config::{Config, Limits};
use crate::http::App;
use crate::publish::{PublishError, Publisher};
use crate::repository::Repository;
use crate::timed_io::{TimedIo, Work};
use crate::tls::{self, TlsError};
use crate::tokens::{TokenError, Tokens};

/// HTTP/2 streams of one connection. Each may hold a piece of a file in memory that its client does not take.
const STREAMS: u32 = 16;
/// File descriptors for other things than connections.
const OTHER_DESCRIPTORS: u64 = 64;
/// Pause after an error of accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The repository directory cannot be used.
    #[error("repository {path}")]
    Repository {
        /// The directory.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("listening on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error("TLS")]
    Tls(#[from] TlsError),
    /// The tokens cannot be read.
    #[error("publish tokens")]
    Tokens(#[from] TokenError),
    /// Publication cannot be set up, or one that was interrupted cannot be completed.
    #[error("publication")]
    Publish(#[from] PublishError),
    /// Tokens would travel in the clear.
    #[error("publish tokens would travel over plain HTTP to {address}: give a certificate, or allow it")]
    PlainTokens {
        /// The address.
        address: SocketAddr,
    },
    /// The access log cannot be opened.
    #[error("access log")]
    AccessLog(#[source] io::Error),
    /// The threads of the server cannot be started.
    #[error("threads")]
    Threads(#[source] io::Error),
}

/// A server that runs until it is stopped. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    tls: bool,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
    runtime: Runtime,
}

/// Starts a server; on return it accepts connections.
///
/// # Errors
/// [`StartError`].
pub fn start(config: Config) -> Result<Running, StartError> {
    let repository_error = |source| StartError::Repository {
        path: config.repo.display().to_string(),
        source,
    };
    if config.publish.is_some() {
        // The first publication may find nothing: a new server starts empty.
        fwdurable::create_dir_all(&config.repo).map_err(repository_error)?;
    }
    if !std::fs::metadata(&config.repo).map_err(repository_error)?.is_dir() {
        return Err(repository_error(io::ErrorKind::NotADirectory.into()));
    }
    let acceptor = config.tls.as_ref().map(tls::acceptor).transpose()?;
    let repository = Arc::new(Repository::new(&config.repo, config.timestamp_max_age));
    let publisher = match &config.publish {
        None => None,
        Some(publish) => {
            if acceptor.is_none() && !config.listen.ip().is_loopback() && !publish.allow_plain_http {
                return Err(StartError::PlainTokens { address: config.listen });
            }
            let tokens = Tokens::open(&publish.token_file)?;
            Some((tokens, Publisher::open(Arc::clone(&repository), publish)?))
        }
    };
    let log = AccessLog::open(&config.access_log).map_err(StartError::AccessLog)?;
    let app = Arc::new(App::new(repository, publisher, log));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("fwserve")
        .build()
        .map_err(StartError::Threads)?;
    let listen_error = |source| StartError::Listen {
        address: config.listen,
        source,
    };
    let listener = runtime
        .block_on(TcpListener::bind(config.listen))
        .map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;
    let (stop, stopped) = watch::channel(false);
    let tls = acceptor.is_some();
    let server = runtime.spawn(serve(listener, acceptor, app, config.limits, stopped));
    Ok(Running {
        address,
        tls,
        stop,
        server,
        runtime,
    })
}

impl Running {
    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }

    /// Stops accepting, lets requests in progress finish within the time of [`Limits::shutdown_timeout`], and returns.
    pub fn stop(self) {
        let _ = self.stop.send(true);
        // An error would be a panic of the accept loop: then nothing is left to wait for.
        let _ = self.runtime.block_on(self.server);
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }

    /// Waits for SIGTERM or SIGINT, then stops.
    ///
    /// # Errors
    /// When signals cannot be received.
    pub fn run_until_signal(self) -> io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        self.runtime.block_on(async {
            let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            io::Result::Ok(())
        })?;
        self.stop();
        Ok(())
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    app: Arc<App>,
    limits: Limits,
    mut stopped: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(limits.connections.min(descriptors())));
    let graceful = GracefulShutdown::new();
    let builder = Arc::new(builder(&limits));
    loop {
        let accepted = tokio::select! {
            _ = stopped.changed() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, remote, permit)) = accepted else {
            continue;
        };
        let (app, acceptor, builder, limits) = (app.clone(), acceptor.clone(), builder.clone(), limits.clone());
        let watcher = graceful.watcher();
        tokio::spawn(async move {
            let _permit = permit;
            // An answer is one write, or a few large ones: waiting to fill packets only delays them.
            let _ = stream.set_nodelay(true);
            let work = Work::default();
            let stream = TimedIo::new(stream, work.clone(), limits.idle_timeout, limits.write_timeout);
            let peer = Peer { remote, work };
            let deadline = tokio::time::Instant::now() + limits.head_timeout;
            match acceptor {
                None => connection(stream, peer, &app, &builder, deadline, watcher).await,
                Some(acceptor) => {
                    if let Ok(Ok(stream)) = tokio::time::timeout_at(deadline, acceptor.accept(stream)).await {
                        connection(stream, peer, &app, &builder, deadline, watcher).await;
                    }
                }
            }
        });
    }
    drop(listener);
    // What is still in progress after that is cut: the process must end.
    let _ = tokio::time::timeout(limits.shutdown_timeout, graceful.shutdown()).await;
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

/// Waits for room before it accepts, so that a flood waits in the kernel's bounded queue.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> Option<Accepted> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, remote)) => Some((stream, remote, permit)),
        Err(_) => {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Connections for which there are file descriptors, one for the socket and one for a file on its way; with none left, a
/// flood of connections would keep the repository from being read. Raises the soft limit, which is kept low only for
/// programs that use `select`.
fn descriptors() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let limit = if setrlimit(Resource::Nofile, raised).is_ok() {
        raised
    } else {
        limit
    };
    // No limit is none.
    let descriptors = limit.current.unwrap_or(u64::MAX);
    let connections = (descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2).clamp(1, Semaphore::MAX_PERMITS as u64);
    usize::try_from(connections).unwrap_or(Semaphore::MAX_PERMITS)
}

fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        // hyper needs 8 KiB.
        .max_buf_size(limits.head_bytes.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(256 * 1024);
    builder
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: Peer,
    app: &Arc<App>,
    builder: &Builder<TokioExecutor>,
    deadline: tokio::time::Instant,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let asked = Arc::new(AtomicBool::new(false));
    let service = service_fn(|request: hyper::Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let (app, peer) = (Arc::clone(app), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(app.answer(request, &peer).await) }
    });
    let connection = watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    tokio::pin!(connection);
    // Covers what the timeouts of HTTP/1 heads do not: a preface or an HTTP/2 head that never ends.
    tokio::select! {
        _ = &mut connection => return,
        () = tokio::time::sleep_until(deadline) => {}
    }
    if asked.load(Ordering::Relaxed) {
        let _ = connection.await;
    }
}
