//! HTTP/1.1 by hand, so that a test sees the bytes and no library's opinion of them.

use std::{io, net::SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

/// The body of a call that sets one attribute of `group`.
pub(crate) fn one_attribute(group: &str) -> String {
    format!(r#"{{"GroupId":"{group}","GroupAttr":[{{"key":"k","value":"v"}}]}}"#)
}

/// A query that breaks no rule.
pub(crate) const QUERY: &str =
    "sdkappid=88888888&identifier=admin&usersig=eJw*x-y_&random=7&contenttype=json";

/// The path of a write that the gateway knows.
pub(crate) const SET: &str = "/v4/group_open_http_svc/set_group_attr";

/// The path of the setter of message extensions.
pub(crate) const EXTEND: &str = "/v4/openim_msg_ext_http_svc/group_set_key_values";

/// A request with a body of known length.
pub(crate) fn request(method: &str, target: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut bytes = format!(
        "{method} {target} HTTP/1.1\r\nHost: gateway.test\r\n{headers}Content-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A good call of a known command.
pub(crate) fn call(path: &str, headers: &str, body: &str) -> Vec<u8> {
    request("POST", &format!("{path}?{QUERY}"), headers, body.as_bytes())
}

/// One request or response as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The request line or the status line.
    pub(crate) start: String,
    /// Names in lower case and values, in the order of the wire.
    pub(crate) headers: Vec<(String, String)>,
    /// The body, without the framing of chunks.
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// The status of a response.
    pub(crate) fn status(&self) -> u16 {
        let status = self.start.split(' ').nth(1);
        status
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("no status in {:?}", self.start))
    }

    /// The values of a header, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let of_name = self.headers.iter().filter(|(own, _)| own == name);
        of_name.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a header that there is once.
    pub(crate) fn one(&self, name: &str) -> &str {
        match self.all(name)[..] {
            [value] => value,
            _ => panic!("not one {name} in {self:?}"),
        }
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is text")
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    fn parse(head: &[u8]) -> Message {
        let head = String::from_utf8_lossy(head);
        let mut lines = head.split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').expect("a header has a colon");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let headers = lines.filter(|line| !line.is_empty()).map(header).collect();
        Message {
            start,
            headers,
            body: Vec::new(),
        }
    }
}

/// How the end of a body is found if no header tells.
#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    UntilClosed,
}

/// One connection, of either side.
pub(crate) struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub(crate) async fn to(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).await;
        Connection::of(stream.expect("somebody listens"))
    }

    /// Connects with room for so many bytes that are not read.
    pub(crate) async fn with_buffer(address: SocketAddr, bytes: u32) -> Connection {
        let socket = TcpSocket::new_v4().expect("there are sockets");
        socket
            .set_recv_buffer_size(bytes)
            .expect("TCP has this option");
        let stream = socket.connect(address).await;
        Connection::of(stream.expect("somebody listens"))
    }

    /// Takes a connection over.
    pub(crate) fn of(stream: TcpStream) -> Connection {
        stream.set_nodelay(true).expect("TCP has this option");
        Connection {
            stream,
            unread: Vec::new(),
        }
    }

    /// Sends bytes.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(bytes)
            .await
            .expect("the other side reads");
    }

    /// Sends bytes to one who may have closed: whether he has.
    pub(crate) async fn is_closed_to(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_err()
    }

    /// Ends the connection with RST instead of FIN.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().expect("TCP has this option");
    }

    /// The next request; `None` when the client has closed.
    pub(crate) async fn request(&mut self) -> Option<Message> {
        let head = self.head().await.ok()?;
        let request = Message::parse(&head);
        self.body(request, Without::Nothing).await.ok()
    }

    /// The head of a message without what follows it.
    pub(crate) async fn interim(&mut self) -> Message {
        let head = self.head().await.expect("there is an answer");
        Message::parse(&head)
    }

    /// The answer to a request that was sent with `method`.
    pub(crate) async fn answer_to(&mut self, method: &str) -> Message {
        let answer = self.interim().await;
        if method == "HEAD" || matches!(answer.status(), 100..200 | 204 | 304) {
            return answer;
        }
        self.body(answer, Without::UntilClosed)
            .await
            .expect("the answer is whole")
    }

    /// What comes until the other side closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await.is_ok() {}
        std::mem::take(&mut self.unread)
    }

    /// What comes next; `None` when the other side has closed.
    pub(crate) async fn more(&mut self) -> Option<Vec<u8>> {
        self.fill().await.ok()?;
        Some(std::mem::take(&mut self.unread))
    }

    /// What comes next, at least a byte.
    pub(crate) async fn some(&mut self) -> Vec<u8> {
        self.fill().await.expect("the other side is there");
        std::mem::take(&mut self.unread)
    }

    /// Whether the other side closes without another byte.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.unread.is_empty() && self.fill().await.is_err()
    }

    async fn body(&mut self, mut message: Message, without: Without) -> io::Result<Message> {
        let length = message.all("content-length").first().map(|l| l.parse());
        message.body = if message.all("transfer-encoding") == ["chunked"] {
            self.chunks().await?
        } else if let Some(length) = length {
            self.take(length.expect("a length is a number")).await?
        } else if without == Without::UntilClosed {
            while self.fill().await.is_ok() {}
            std::mem::take(&mut self.unread)
        } else {
            Vec::new()
        };
        Ok(message)
    }

    async fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n").await?;
            let line = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(line.trim(), 16).expect("a chunk has a size");
            let chunk = self.take(size).await?;
            body.extend_from_slice(&chunk);
            assert_eq!(self.until(b"\r\n").await?, b"\r\n", "no trailers here");
            if size == 0 {
                return Ok(body);
            }
        }
    }

    async fn head(&mut self) -> io::Result<Vec<u8>> {
        self.until(b"\r\n\r\n").await
    }

    async fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            let found = self.unread.windows(end.len()).position(|at| at == end);
            match found {
                Some(at) => return self.take(at + end.len()).await,
                None => self.fill().await?,
            }
        }
    }

    async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < count {
            self.fill().await?;
        }
        let rest = self.unread.split_off(count);
        Ok(std::mem::replace(&mut self.unread, rest))
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.unread).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// Sends one request over a connection of its own and reads the answer.
pub(crate) async fn exchange(address: SocketAddr, request: &[u8]) -> Message {
    let mut connection = Connection::to(address).await;
    connection.send(request).await;
    let method = request.split(|byte| *byte == b' ').next();
    let method = String::from_utf8_lossy(method.unwrap_or_default());
    connection.answer_to(&method).await
}
