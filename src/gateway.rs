//! The spine: find the command, validate, wait in a lane (`gateway/under_way.rs`), render the answer.
//!
//! Three ways lead to the upstream. A write waits in the lane of its key. A read waits for its
//! command's quota only, and identical ones share a call. A command that is not in the catalogue
//! does the same alone, and its answer is not looked into; if a rule of the settings gives it a quota,
//! it waits in a lane like a write.

mod ending;
mod headers;
mod under_way;

use std::{future::Future, pin::pin, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, Version, header, request::Parts};

use crate::{
    admission,
    call::{Call, Caller, Head, QuotaClass, Reply, SignedBy, Target, Travels, compact},
    catalogue::{self, Command, OTHER},
    clock::{self, Alarms, Instant},
    config::{InForce, LogIds},
    error::{self, Reason, Refusal},
    keys::Keys,
    lane::{
        Lanes, NoAnswer, Submitted,
        alone::Alone,
        room::{Place, Room},
    },
    metrics::{Metrics, Outcome},
    quota::{
        permit::Permit,
        scopes::{Ahead, Scopes},
    },
    reads::Reads,
    rules::{Rule, Rules},
    shutdown::{Lifecycle, Phase},
    sync::Mutex,
    trace::{Span, Traces},
    upstream::{
        Outbound,
        client::drop_hop_by_hop,
        meter::admit_now,
        trip::{Answer, Facts, Trip},
    },
    validate::{self, Terms},
};
use ending::{About, Ending};
use under_way::{Begun, Departed, UnderWay};

/// Everything between a request and its answer.
pub struct Gateway {
    lanes: Arc<Lanes>,
    reads: Arc<Reads>,
    keys: Arc<Keys>,
    rules: Rules,
    metrics: Arc<Metrics>,
    lifecycle: Lifecycle,
    settings: InForce,
    ids: LogIds,
    traces: Option<Traces>,
    /// For the callers' deadlines.
    alarms: Alarms,
}

/// The body of a request, or why there is none.
pub type Body = Result<Bytes, Refusal>;

impl Gateway {
    /// A gateway over these parts.
    pub fn new(
        settings: InForce,
        keys: Arc<Keys>,
        rules: Rules,
        lanes: Arc<Lanes>,
        metrics: Arc<Metrics>,
        lifecycle: Lifecycle,
        traces: Option<Traces>,
    ) -> Gateway {
        Gateway {
            lanes,
            reads: Arc::default(),
            keys,
            rules,
            metrics,
            lifecycle,
            ids: settings.get().log.ids,
            settings,
            traces,
            alarms: Alarms::default(),
        }
    }

    /// What it counts with.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Answers one request of `caller`, whose body is still to be read by `body`; of its head is taken
    /// what goes on. Dropped before it is ready, the caller has left: what waits leaves too, what was
    /// sent goes on.
    pub async fn handle<F>(
        self: &Arc<Self>,
        caller: Caller,
        head: &mut Parts,
        body: F,
    ) -> Response<Bytes>
    where
        F: Future<Output = Body>,
    {
        let body = async |_: &Room| body.await;
        let answer = async { self.clone().begin(caller, head, body).await.answer().await };
        let mut answer = pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            () = self.lifecycle.reached(Phase::Expired) => answer.await,
        }
    }

    /// The first half of [`handle`](Self::handle), after which nothing is left of the request but what
    /// waits. The body is read under the bound on all that waits. Whoever polls it does so, too, when the grace
    /// of a gateway that stops is over: a waker of each call for that would take 160 bytes of each.
    pub(crate) async fn begin(
        self: Arc<Self>,
        caller: Caller,
        head: &mut Parts,
        body: impl AsyncFnOnce(&Room) -> Body,
    ) -> UnderWay {
        let received = clock::now();
        let found = self.find(head.uri.path());
        let label = found.label();
        let span = match &self.traces {
            Some(traces) => traces.request(label, &head.headers, received),
            None => Span::default(),
        };
        let about = About {
            label,
            received,
            span,
        };
        let ending = Ending::of(self, about);
        let gateway = &ending.gateway;
        let read = tokio::select! {
            biased;
            read = gateway.read_whole(caller, found, head, body) => read,
            () = gateway.lifecycle.is_seen(Phase::Expired) => Err(draining()),
        };
        let mut target = None;
        let begun = read.and_then(|(caller, body)| {
            gateway.let_in(caller, found, head, body, &ending.about, &mut target)
        });
        let begun = begun.unwrap_or_else(|refusal| Begun::Refused {
            refusal,
            target: target.map(Box::new),
        });
        UnderWay {
            ending,
            is_known: !matches!(found, Found::Nothing),
            begun,
        }
    }

    /// Who calls, by his token if there are tokens.
    fn enter(
        &self,
        caller: Caller,
        command: Option<&Command>,
        head: &Parts,
    ) -> Result<Caller, Refusal> {
        let Some(access) = &self.keys.access else {
            return Ok(caller);
        };
        match access.check(&head.headers, head.uri.path()) {
            Ok(name) => Ok(Caller::Token(name)),
            Err(denied) => {
                self.metrics.denied(denied);
                Err(denied.refusal(command))
            }
        }
    }

    /// Whoever may not call is not read either.
    async fn read_whole(
        &self,
        caller: Caller,
        found: Found,
        head: &Parts,
        body: impl AsyncFnOnce(&Room) -> Body,
    ) -> Result<(Caller, Bytes), Refusal> {
        let caller = self.enter(caller, found.command(), head)?;
        Ok((caller, body(&self.lanes.room).await?))
    }

    /// All that is done before anything is waited for. Says as well what the call is about, once that is
    /// known.
    fn let_in(
        &self,
        caller: Caller,
        found: Found,
        parts: &mut Parts,
        body: Bytes,
        about: &About,
        target: &mut Option<Target>,
    ) -> Result<Begun, Refusal> {
        let received = about.received;
        let said = headers::Said::by(&parts.headers);
        let wishes = said.wishes(&self.settings.get())?;
        let says_length = said.says_length(body.len());
        let (is_hop_by_hop, expects) = (said.is_hop_by_hop, said.expects);
        // HTTP/2 says that there is none by ending the stream.
        let has_body =
            said.has_body || (parts.version == Version::HTTP_2 && may_have_body(&parts.method));
        let deadline = received + wishes.deadline;
        let path_and_query = std::mem::take(&mut parts.uri).into_parts().path_and_query;
        let path_and_query = path_and_query.ok_or_else(|| {
            Refusal::invalid(error::BAD_REQUEST, "the request target has no path")
        })?;
        let mut headers = std::mem::take(&mut parts.headers);
        if is_hop_by_hop {
            drop_hop_by_hop(&mut headers);
        }
        if !says_length {
            // hyper writes it.
            headers.remove(header::CONTENT_LENGTH);
        }
        if expects {
            // The body is here whole: nobody needs to ask for it.
            headers.remove(header::EXPECT);
        }
        if self.keys.access.is_some() {
            // The token is for the gateway.
            headers.remove(header::AUTHORIZATION);
        }
        if has_body && body.is_empty() && !says_length {
            // That there is none hyper does not say, and some servers refuse a POST without a
            // length.
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let mut head = Head::new(std::mem::take(&mut parts.method), path_and_query, headers);
        let completed = self.keys.signers.complete(&head.target);
        let signed_by = match completed {
            Ok(Some(_)) => SignedBy::Gateway,
            _ => SignedBy::Caller,
        };
        head.target = match (found, completed) {
            (Found::Command(_), completed) => completed?.unwrap_or(head.target),
            // What is not signed here either is for the API to judge.
            (_, completed) => completed.ok().flatten().unwrap_or(head.target),
        };
        let travels = if wishes.merge {
            Travels::Together
        } else {
            Travels::Alone
        };
        let terms = Terms {
            caller,
            received,
            deadline,
            travels,
            signed_by,
            random: rand::random(),
        };
        let span = about.span.clone();
        let command = match found {
            Found::Command(command) => command,
            Found::Rule(rule) => {
                let mut call = rule.call(head, body, terms);
                call.span = span;
                *target = Some(call.target.clone());
                return self.write(rule.class, call);
            }
            Found::Nothing => return self.pass_through(head, body, deadline, span),
        };
        let mut call = validate::validate(command, head, body, terms)?;
        call.span = span;
        *target = Some(call.target.clone());
        if let Some(credentials) = call.head.credentials() {
            self.lanes.upstream.refused.check(credentials, received)?;
        }
        match command.action.quota() {
            Some(class) => self.write(class, call),
            None => self.read(call),
        }
    }

    fn find(&self, path: &str) -> Found {
        match catalogue::find(path) {
            Some(command) => Found::Command(command),
            None => self.rules.find(path).map_or(Found::Nothing, Found::Rule),
        }
    }

    /// A write: in the lane of its key.
    fn write(&self, class: QuotaClass, call: Call) -> Result<Begun, Refusal> {
        let deadline = call.deadline;
        Ok(match self.lanes.submit(class, call)? {
            Submitted::Alone(Alone { running, trip }) => {
                Begun::Own(Departed::new(running, trip), deadline)
            }
            Submitted::Waits(waiting) => Begun::InLane(waiting),
        })
    }

    /// A command that is not in the catalogue: unchanged, under the API-wide limit only.
    fn pass_through(
        &self,
        mut head: Head,
        mut body: Bytes,
        deadline: Instant,
        span: Span,
    ) -> Result<Begun, Refusal> {
        let app = head.target.query().and_then(validate::app);
        let scopes = Scopes {
            key: None,
            command: self.lanes.quota.command(head.target.path(), app),
        };
        let permit = admit_now(&self.lanes.upstream.breaker, &scopes);
        let mut place = None;
        if permit.is_none() {
            self.admit(&scopes, deadline)?;
            place = Some(self.place(body.len())?);
            compact(&mut head, &mut body);
        }
        let trip = Arc::new(Trip::for_one(deadline, span).in_place(place));
        let running = self.send(None, Arc::new(head), body, scopes, permit, trip.clone());
        Ok(Begun::Own(Departed::new(Box::pin(running), trip), deadline))
    }

    /// A read: under the API-wide limit, shared with identical ones.
    fn read(&self, mut call: Call) -> Result<Begun, Refusal> {
        let app = Some(call.target.app);
        let command = self.lanes.quota.command(call.command.path, app);
        let scopes = Scopes { key: None, command };
        self.admit(&scopes, call.deadline)?;
        let start = |call: &mut Call, deadline| {
            let permit = admit_now(&self.lanes.upstream.breaker, &scopes);
            let mut place = None;
            if permit.is_none() {
                place = Some(self.place(call.body.len())?);
                call.compact();
            }
            let trip = Trip::for_one(deadline, call.span.clone()).about(call.target.clone());
            let trip = Arc::new(trip.in_place(place));
            let (head, body) = (call.head.clone(), call.body.clone());
            let scopes = scopes.clone();
            let running = self.send(Some(call), head, body, scopes, permit, trip.clone());
            Ok((trip, running))
        };
        if call.travels == Travels::Alone {
            let deadline = call.deadline;
            let (trip, running) = start(&mut call, deadline)?;
            return Ok(Begun::Own(Departed::new(Box::pin(running), trip), deadline));
        }
        // Whoever joins may have a later deadline than the one who began.
        let longest = call.received + self.settings.get().queue.deadline;
        let reading = self.reads.share(&mut call, |call| start(call, longest))?;
        let reading = Departed::new(reading.answer, reading.trip);
        Ok(Begun::Shared(reading, call.deadline))
    }

    /// One call through the stack. It owns all that it needs, so that it can outlive its caller.
    fn send(
        &self,
        call: Option<&Call>,
        head: Arc<Head>,
        body: Bytes,
        scopes: Scopes,
        permit: Option<Permit>,
        trip: Arc<Trip>,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let lanes = self.lanes.clone();
        let outbound = Arc::new(Outbound {
            command: call.map(|call| call.command),
            head,
            body,
            scopes,
            permit: Mutex::new(permit),
            trip,
        });
        async move {
            let result = lanes.upstream.send(outbound.clone()).await;
            let facts = outbound.trip.facts();
            if let Err(failure) = &result
                && facts.attempts > 0
            {
                tracing::warn!(
                    command = outbound.label(),
                    calls = facts.batch,
                    attempts = facts.attempts,
                    %failure,
                    "a call got no answer from the upstream"
                );
            }
            Answer { result, facts }
        }
    }

    /// Refuses at once what cannot be served in time, of calls that wait for no key.
    fn admit(&self, scopes: &Scopes, deadline: Instant) -> Result<(), Refusal> {
        let now = clock::now();
        let upstream = &self.lanes.upstream;
        let forecast = scopes.forecast(now, Ahead::default(), upstream.service_time.get());
        admission::admit(upstream, None, forecast, now, deadline)
    }

    fn place(&self, bytes: usize) -> Result<Place, Refusal> {
        let place = self.lanes.room.enter(None, bytes);
        place.map_err(|full| admission::no_room(error::API_LIMIT.into(), full))
    }

    fn render(&self, known: bool, served: Result<Answer, NoAnswer>) -> Rendered {
        let (refusal, facts) = match served {
            Ok(Answer {
                result: Ok(reply),
                facts,
            }) => {
                return Rendered {
                    outcome: outcome_of(known, &reply),
                    reason: None,
                    facts: Some(facts),
                    response: from_upstream(reply),
                };
            }
            Ok(Answer {
                result: Err(failure),
                facts,
            }) => (admission::failed(&failure), Some(facts)),
            Err(NoAnswer { refusal, facts }) => (refusal, facts),
        };
        if let Some(bound) = refusal.bound {
            self.metrics.reached(bound);
        }
        let outcome = match refusal.reason {
            Reason::Invalid | Reason::TooLarge | Reason::Unauthorized => Outcome::Invalid,
            Reason::Deadline | Reason::QueueFull | Reason::CallerLimit | Reason::Draining => {
                Outcome::Shed
            }
            Reason::UpstreamUnreachable | Reason::UpstreamTimeout => Outcome::Failed,
        };
        let reason = Some(refusal.reason.name());
        let mut response = refusal.response(self.settings.get().listen.status_codes);
        let origin = HeaderValue::from_static("gateway");
        response.headers_mut().insert(headers::ORIGIN, origin);
        Rendered {
            outcome,
            reason,
            facts,
            response,
        }
    }
}

/// Whether a server expects to be told the length of the body, even if there is none (RFC 9110, 8.6).
fn may_have_body(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}

/// What is known of a path.
#[derive(Clone, Copy)]
enum Found {
    /// Its command is in the catalogue.
    Command(&'static Command),
    /// Its command has a rule.
    Rule(&'static Rule),
    Nothing,
}

impl Found {
    fn command(self) -> Option<&'static Command> {
        match self {
            Found::Command(command) => Some(command),
            Found::Rule(rule) => Some(&rule.command),
            Found::Nothing => None,
        }
    }

    /// The `command` label of the metrics.
    fn label(self) -> &'static str {
        self.command().map_or(OTHER, |command| command.name)
    }
}

/// An answer, and what there is to say about it.
struct Rendered {
    outcome: Outcome,
    reason: Option<&'static str>,
    facts: Option<Facts>,
    response: Response<Bytes>,
}

fn from_upstream(reply: Reply) -> Response<Bytes> {
    let mut response = Response::new(reply.body);
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    let origin = HeaderValue::from_static("upstream");
    response.headers_mut().insert(headers::ORIGIN, origin);
    response
}

fn outcome_of(known: bool, reply: &Reply) -> Outcome {
    match reply.code {
        _ if reply.status.is_server_error() => Outcome::Failed,
        None if known => Outcome::Failed,
        None if reply.status.is_client_error() => Outcome::Refused,
        None | Some(0) => Outcome::Ok,
        Some(_) => Outcome::Refused,
    }
}

fn draining() -> Refusal {
    Refusal::new(
        Reason::Draining,
        error::SERVICE_TIMEOUT,
        "the gateway is stopping and had no answer yet; a call that was on its way may have taken \
         effect",
    )
}
