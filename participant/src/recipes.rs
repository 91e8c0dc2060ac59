//! Recipes: how to do what comes up when services take part in global transactions. Every piece of code here is compiled
//! with the library's tests.
//!
//! | to | see |
//! |---|---|
//! | start a service in the right order, and end it | [A service from start to end](#a-service-from-start-to-end) |
//! | run a transaction again after a conflict or an outage | [Retry](#retry) |
//! | take a request of a client that may send it twice | [A request that may come twice](#a-request-that-may-come-twice) |
//! | go on without a call that failed | [A call that may fail](#a-call-that-may-fail) |
//! | call one service several times in a transaction | [Several calls on one open branch](#several-calls-on-one-open-branch) |
//! | do what takes longer than half a minute | [Long transactions](#long-transactions) |
//! | consume messages, each once | [Idempotent consumers](#idempotent-consumers) |
//! | begin a transaction when a message comes | [A message that begins a transaction](#a-message-that-begins-a-transaction) |
//! | settle a message that its consumer fails again and again | [Dead letters](#dead-letters) |
//! | see that something is stuck | [What to watch](#what-to-watch) |
//! | test a service | [Testing](#testing) |
//!
//! # A service from start to end
//! Store, participant, attachment, outbox, relay, server; the end in the opposite order. Attaching takes up what an earlier
//! process left in doubt, and opening the outbox what it did not see confirmed.
//! ```no_run
//! use synod::outbox::{Consumer, Outbox};
//! use synod::resource::redb::RedbResource;
//! use synod::{BoxError, Participant};
//!
//! # async fn run() -> Result<(), BoxError> {
//! let store = RedbResource::open("orders.redb")?;
//! // Fails if no leader answers within ten seconds: a service that starts with its machines wants longer, or tries again.
//! let participant = Participant::builder()
//!     .coordinators(["http://10.0.0.1:7401", "http://10.0.0.2:7401", "http://10.0.0.3:7401"])
//!     .connect_timeout(std::time::Duration::from_secs(60))
//!     .connect()
//!     .await?;
//! let orders = participant.resource(store.clone()).await?;
//! let outbox = Outbox::builder(&store)
//!     .consumer(Consumer::new("billing", "http://10.0.1.1:9100").topic("orders.placed"))
//!     .open()
//!     .await?;
//! let relay = tokio::spawn(outbox.relay().run());
//!
//! tonic::transport::Server::builder()
//!     .layer(participant.layer())
//!     .add_service(outbox.admin_server()) // for `synod outbox`; asks for no credentials
//!     // .add_service(OrdersServer::new(OrdersService { orders, outbox }))
//!     .serve_with_shutdown("0.0.0.0:9001".parse()?, async {
//!         let _ = tokio::signal::ctrl_c().await;
//!     })
//!     .await?;
//! relay.abort();
//! participant.shutdown().await;
//! # drop(orders);
//! # Ok(())
//! # }
//! ```
//! A process may also just die: whatever it had voted for waits in its file, and is finished when any process opens the file.
//! Until then its rows stay locked, so a database that is given up for good needs
//! [an operator's hand](#what-to-watch).
//!
//! # Retry
//! [`retry`](crate::retry) runs the work in a new transaction after a lock conflict or an outage, and never after a refusal of
//! the business. One answer it leaves to you: [in doubt](crate::CommitError::InDoubt), when the request was handed over and its
//! answer got lost. That one is resolved before anything is tried again.
//! ```no_run
//! # mod shop { include!("doc_shop.rs"); }
//! # use shop::{InventoryClient, ReserveRequest};
//! use synod::resource::redb::RedbResource;
//! use synod::{BoxError, CommitError, Committed, Participant, ResolveError, Resource, RetryError, RetryOptions};
//! use tonic::transport::Channel;
//!
//! async fn place(
//!     participant: &Participant,
//!     orders: &Resource<RedbResource>,
//!     inventory: &Channel,
//!     order: &str,
//! ) -> Result<Committed, BoxError> {
//!     loop {
//!         let placed = synod::retry(participant, RetryOptions::default(), async |txn| {
//!             let request = ReserveRequest { sku: "bolt".to_owned(), quantity: 2 };
//!             txn.client(inventory, InventoryClient::new).reserve(request).await?;
//!             let order = order.to_owned();
//!             txn.branch(orders, async move |mut tx| Ok(tx.put("orders", order, "2 bolts").await?)).await?;
//!             Ok(())
//!         });
//!         let in_doubt = match placed.await {
//!             Ok(((), committed)) => return Ok(committed),
//!             Err(RetryError::Commit { source: CommitError::InDoubt(in_doubt), .. }) => in_doubt,
//!             Err(error) => return Err(error.into()),
//!         };
//!         // Waits for as long as no quorum of the coordinator can be reached.
//!         match in_doubt.resolve().await {
//!             Ok(committed) => return Ok(committed),
//!             Err(ResolveError::Aborted { .. }) => {} // Nothing took effect: once more.
//!             Err(error) => return Err(error.into()),
//!         }
//!     }
//! }
//! ```
//! Everything in the closure may run several times, so effects outside the databases (a mail, a payment) belong behind the
//! commit, best as the effect of a [message](#idempotent-consumers). A process that dies here leaves no half: either the log has
//! the commit, and it takes effect, or the deadline aborts it. Who asked cannot know which, and asks again:
//!
//! # A request that may come twice
//! Let the client name its request (an order id), and let the row of that name decide: two transactions never both insert.
//! ```
//! # mod coordinator { include!("doc_coordinator.rs"); }
//! use synod::resource::redb::RedbResource;
//! use synod::{BoxError, Participant, Resource};
//!
//! /// Answers whether it was placed now; if not, it was before.
//! async fn place_once(
//!     participant: &Participant,
//!     orders: &Resource<RedbResource>,
//!     order: String,
//! ) -> Result<bool, BoxError> {
//!     let txn = participant.begin();
//!     // Waits for an earlier attempt that has not taken effect yet, since that one holds the row's lock.
//!     let is_new = txn.branch(orders, async move |mut tx| Ok(tx.insert("orders", order, "2 bolts").await?)).await?;
//!     if !is_new {
//!         txn.abort("it was placed before").await?;
//!         return Ok(false);
//!     }
//!     // … the calls to other services …
//!     txn.commit().await?;
//!     Ok(true)
//! }
//! # async fn twice(coordinators: Vec<String>, directory: std::path::PathBuf) -> Result<(), BoxError> {
//! #     let participant = Participant::builder().coordinators(coordinators).connect().await?;
//! #     let orders = participant.resource(RedbResource::open(directory.join("orders.redb"))?).await?;
//! #     assert!(place_once(&participant, &orders, "order-1".to_owned()).await?);
//! #     assert!(!place_once(&participant, &orders, "order-1".to_owned()).await?);
//! #     participant.shutdown().await;
//! #     Ok(())
//! # }
//! # coordinator::run(twice);
//! ```
//!
//! # A call that may fail
//! A failed call dooms its transaction, unless it is taken out of it by name. Nothing below that call takes effect then.
//! ```no_run
//! # mod shop { include!("doc_shop.rs"); }
//! # use shop::{InventoryClient, ReserveRequest};
//! use synod::{BoxError, Transaction, call_id};
//! use tonic::transport::Channel;
//!
//! /// A gift is added if there is one.
//! async fn add_gift(txn: &Transaction, inventory: &Channel) -> Result<(), BoxError> {
//!     let request = ReserveRequest { sku: "gift".to_owned(), quantity: 1 };
//!     let Err(status) = txn.client(inventory, InventoryClient::new).reserve(request).await else {
//!         return Ok(());
//!     };
//!     match call_id(status.metadata()) {
//!         Some(call) => Ok(txn.discard(call)?),
//!         None => Err(status.into()),
//!     }
//! }
//! ```
//! A failed local branch is named by [`BranchError::call`](crate::BranchError::call). One call of an open branch cannot be
//! discarded: its local transaction is one.
//!
//! # Several calls on one open branch
//! Two calls of one transaction to the same rows are two branches, of which the second is refused. Where that is what the work
//! looks like (an order's lines, each a call), leave the branch open: [`open_branch`](crate::Resource::open_branch) in the
//! method instead of [`branch`](crate::Resource::branch), and nothing else changes. A later call sees what the earlier ones
//! wrote.
//! ```no_run
//! # mod shop { include!("doc_shop.rs"); }
//! # use shop::{InventoryClient, ReserveRequest};
//! # use synod::{BoxError, Participant};
//! # use tonic::transport::Channel;
//! # async fn order(participant: &Participant, inventory: &Channel) -> Result<(), BoxError> {
//! let txn = participant.begin();
//! for quantity in [2, 3, 5] {
//!     // Served by `open_branch`: one local transaction, prepared by the commit below.
//!     let request = ReserveRequest { sku: "bolt".to_owned(), quantity };
//!     txn.client(inventory, InventoryClient::new).reserve(request).await?;
//! }
//! txn.commit().await?;
//! # Ok(())
//! # }
//! ```
//! The price: a round trip more at the commit; ten seconds without a call or a commit roll the branch back; a restart of the
//! service before the commit aborts the transaction; and all calls of a transaction must reach the same process.
//!
//! # Long transactions
//! A branch keeps its locks from its first write until the outcome has reached it, so whatever is slow and needs no lock comes
//! before `begin`, and whatever can wait comes after the commit, as a message. If the work itself is slow, give it time, up to
//! five minutes:
//! ```no_run
//! use std::time::Duration;
//! use synod::{Participant, RetryOptions, Transaction, TransactionOptions};
//!
//! fn begin_long(participant: &Participant) -> Transaction {
//!     participant.begin_with(TransactionOptions::default().deadline(Duration::from_secs(120)))
//! }
//!
//! fn retry_long() -> RetryOptions {
//!     RetryOptions::default().transaction(TransactionOptions::default().deadline(Duration::from_secs(120)))
//! }
//! ```
//! The deadline bounds each branch's work and vote. It also is how long others may wait for rows if the initiator dies.
//!
//! What waits for people or for other companies is no transaction but a row that says how far it has come. Each step is a
//! transaction of its own, local or global, which also publishes the message that asks for the next; a delayed message is the
//! alarm clock. Every step happens, once, and in each row's order; what must be undone is a step of its own, written by you.
//! ```no_run
//! use std::time::Duration;
//! use synod::inbox::Inbox;
//! use synod::outbox::{Message, Outbox};
//! use synod::resource::redb::RedbResource;
//!
//! /// The service *payments*: `outbox` is one of the same store.
//! fn payments(store: &RedbResource, outbox: Outbox) -> Inbox {
//!     let asking = outbox.clone();
//!     Inbox::builder(store)
//!         .handle("orders.reserved", move |order, mut tx| {
//!             let outbox = asking.clone();
//!             async move {
//!                 tx.put("payments", &order.key, "awaited").await?;
//!                 let day = Duration::from_secs(24 * 60 * 60);
//!                 let reminder = Message::new("payments.overdue", &order.key, "").delay(day);
//!                 outbox.publish(&mut tx, Message::new("payments.awaited", &order.key, order.body)).await?;
//!                 outbox.publish(&mut tx, reminder).await?;
//!                 Ok(())
//!             }
//!         })
//!         .handle("payments.overdue", move |order, mut tx| {
//!             let outbox = outbox.clone();
//!             async move {
//!                 // Whoever paid in time has changed the row, and the alarm clock rings for nobody.
//!                 if tx.get_for_update("payments", &order.key).await?.as_deref() == Some(&b"awaited"[..]) {
//!                     tx.put("payments", &order.key, "given up").await?;
//!                     outbox.publish(&mut tx, Message::new("orders.cancel", &order.key, "")).await?;
//!                 }
//!                 Ok(())
//!             }
//!         })
//!         .build()
//! }
//! ```
//! (A service may consume its own messages: `payments.overdue` goes to its own address.)
//!
//! # Idempotent consumers
//! An [inbox](crate::inbox) writes its own row in the local transaction of the handler's effect. A message that comes twice is
//! recognised, however late, and the handler needs no check of its own for whatever it writes with its `tx`:
//! ```no_run
//! use synod::inbox::Inbox;
//! use synod::resource::redb::RedbResource;
//!
//! fn billing(store: &RedbResource) -> Inbox {
//!     Inbox::builder(store)
//!         .name("billing")
//!         .handle("orders.placed", async |delivery, mut tx| {
//!             let owed = tx.get_u64_for_update("accounts", &delivery.key).await?.unwrap_or(0);
//!             tx.put_u64("accounts", &delivery.key, owed + 450).await?;
//!             Ok(())
//!         })
//!         .build()
//! }
//! ```
//! What a handler does elsewhere may be repeated: the process can die between that and its own commit. Hand the other side the
//! message's id, [`Delivery::id`](crate::inbox::Delivery::id), which stays the same at every attempt, as the name of the
//! request; most payment services take such an *idempotency key*. Where the other side takes none, a mail may be sent twice,
//! and no protocol can change that.
//!
//! # A message that begins a transaction
//! A handler's `tx` is local. If the effect is to be global, let the handler run a global transaction, and let a row under the
//! message's id decide whether it is the first to do so:
//! ```
//! # mod coordinator { include!("doc_coordinator.rs"); }
//! use synod::inbox::Inbox;
//! use synod::resource::redb::RedbResource;
//! use synod::{BranchTransaction, Participant, Resource, RetryOptions};
//!
//! /// `shipments` is the inbox's own store, attached, and `stock` another one; a call to another service would do as well.
//! fn shipping(
//!     store: &RedbResource,
//!     participant: Participant,
//!     shipments: Resource<RedbResource>,
//!     stock: Resource<RedbResource>,
//! ) -> Inbox {
//!     Inbox::builder(store)
//!         .handle("orders.paid", move |delivery, _tx| {
//!             let (participant, shipments, stock) = (participant.clone(), shipments.clone(), stock.clone());
//!             async move {
//!                 synod::retry(&participant, RetryOptions::default(), async |txn| {
//!                     let (id, order) = (delivery.id.0, delivery.key.clone());
//!                     // Waits for an earlier delivery's transaction that has not taken effect yet.
//!                     let is_first = txn.branch(&shipments, async move |mut tx: BranchTransaction<RedbResource>| {
//!                         Ok(tx.insert("shipments", id, order).await?)
//!                     });
//!                     if is_first.await? {
//!                         let taking = txn.branch(&stock, async |mut tx| {
//!                             let bolts = tx.get_u64_for_update("stock", "bolt").await?.unwrap_or(0);
//!                             let left = bolts.checked_sub(2).ok_or("out of stock")?;
//!                             Ok(tx.put_u64("stock", "bolt", left).await?)
//!                         });
//!                         taking.await?;
//!                     }
//!                     Ok(())
//!                 })
//!                 .await?;
//!                 Ok(())
//!             }
//!         })
//!         .build()
//! }
//! # async fn ship(coordinators: Vec<String>, directory: std::path::PathBuf) -> Result<(), synod::BoxError> {
//! #     use synod::outbox::{Consumer, Message, Outbox};
//! #     use tonic::transport::server::{Server, TcpIncoming};
//! #     let participant = Participant::builder().coordinators(coordinators).connect().await?;
//! #     let open = |name: &str| RedbResource::open(directory.join(name));
//! #     let (orders, shop, warehouse) = (open("orders.redb")?, open("shop.redb")?, open("warehouse.redb")?);
//! #     let shipments = participant.resource(shop.clone()).await?;
//! #     let stock = participant.resource(warehouse.clone()).await?;
//! #     let mut tx = warehouse.begin_local()?;
//! #     tx.put_u64("stock", "bolt", 10).await?;
//! #     tx.commit().await?;
//! #     let inbox = shipping(&shop, participant.clone(), shipments, stock);
//! #     let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! #     let address = format!("http://{}", listener.local_addr()?);
//! #     let server = Server::builder().add_service(inbox.server());
//! #     let server = tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
//! #     let shipping = Consumer::new("shipping", address).topic("orders.paid");
//! #     let outbox = Outbox::builder(&orders).consumer(shipping).open().await?;
//! #     let relay = tokio::spawn(outbox.relay().run());
//! #     let mut tx = orders.begin_local()?;
//! #     for order in ["order-1", "order-2"] {
//! #         outbox.publish(&mut tx, Message::new("orders.paid", order, "")).await?;
//! #     }
//! #     tx.commit().await?;
//! #     let bolts = || warehouse.snapshot()?.get("stock", "bolt");
//! #     while outbox.status().await?.stored_count > 0 || bolts()?.as_deref() != Some(&6u64.to_be_bytes()[..]) {
//! #         tokio::time::sleep(std::time::Duration::from_millis(10)).await;
//! #     }
//! #     assert_eq!(shop.snapshot()?.scan("shipments", "")?.len(), 2);
//! #     relay.abort();
//! #     server.abort();
//! #     participant.shutdown().await;
//! #     Ok(())
//! # }
//! # coordinator::run(ship);
//! ```
//! An error, in doubt included, is a failed attempt: the message comes again, and meets the row, its lock, or neither. Its
//! attempts are counted, so a coordinator that is away for ten minutes makes dead letters here: give the consumer a higher
//! [`attempt_count_max`](crate::outbox::Consumer::attempt_count_max).
//!
//! # Dead letters
//! A message whose handler fails, panics or times out comes again, after waits that double from 100 ms to a minute. After twenty
//! failures, five to eleven minutes after the first one, it is a dead letter: it waits for a person. No dead letters come of a
//! consumer that is away, has no handler for the topic or no room, nor of an error of its store that another attempt may not meet: a
//! lock that a branch in doubt holds, a conflict, a store that is closed. Such messages stay pending, with the failed attempts that
//! they had and the reason (`synod outbox list`), however long it lasts; one whose topic nobody wants goes when a handler that
//! does nothing takes it. Hand the store's error on with `?`: it is known by its type, not by its text.
//!
//! Meanwhile the other keys go on. The bounds: while 16,384 keys of one topic wait, no more keys of that topic are sent, and
//! [`Outbox::status`](crate::outbox::Outbox::status) says so as the consumer's trouble. Handlers that hang hold up the others of
//! their topic when there are 64 of them, and other topics when that many hang in four topics, or two topics fill a relay's stream.
//!
//! 1. *Look*: `synod outbox dead --service HOST:PORT` lists id, consumer, key and the last reason.
//! 2. *Mend the consumer*, if it was its fault, and `synod outbox requeue ID --service HOST:PORT --author NAME --reason TEXT`:
//!    the message is sent as if it had never been tried, and its key goes on behind it.
//! 3. If the message itself is wrong, `synod outbox discard ID …`: it is never sent again, and its key goes on without it.
//!    Author and reason are kept.
//!
//! The same from within the service, for a page of its own:
//! ```no_run
//! use synod::Position;
//! use synod::outbox::{Outbox, OutboxError};
//!
//! async fn requeue_all(outbox: &Outbox, author: &str) -> Result<u64, OutboxError> {
//!     let mut after = Position(0);
//!     loop {
//!         let page = outbox.dead_letters(Some("billing"), after, 100).await?;
//!         let Some(last) = page.last() else { break };
//!         after = last.entry.position;
//!         for letter in &page {
//!             eprintln!("{}: {}", letter.entry.id, letter.reason);
//!         }
//!     }
//!     // As `synod outbox requeue --all --consumer billing` does; with a topic, only that one's.
//!     outbox.requeue_all("billing", None, author, "billing was mended").await
//! }
//! ```
//! Meanwhile the later messages of its key wait, so that order is kept; all other keys go on. Where order matters less than
//! progress, let the key go on, and the dead letter, once requeued, comes after the others:
//! ```no_run
//! use synod::outbox::{Consumer, DeadLetterPolicy};
//!
//! fn statistics() -> Consumer {
//!     Consumer::new("statistics", "http://10.0.1.7:9100")
//!         .topic("orders.placed")
//!         .attempt_count_max(5)
//!         .on_dead_letter(DeadLetterPolicy::Skip)
//! }
//! ```
//!
//! # Consumers that change
//! *Topics.* Name them, or take them away, where the outbox is opened. A topic that is added begins with what becomes visible
//! then. One that is taken away stays the consumer's as far as it was visible: keep its handler until nothing of it is left.
//! `synod outbox unsubscribe CONSUMER --topic NAME --service HOST:PORT` tells how much that is, and with
//! `--yes --author NAME --reason TEXT` drops it ([`Outbox::unsubscribe_topic`](crate::outbox::Outbox::unsubscribe_topic)); without
//! `--topic`, all of a consumer that is not named any more ([`Outbox::unsubscribe`](crate::outbox::Outbox::unsubscribe)).
//!
//! *A database that was put back.* Its relay says so in `trouble`, and sends nothing: what the database had acknowledged is not
//! sent again.
//! 1. If its later state can be had, bring that back instead; nothing else is to be done.
//! 2. Else find out what it lost: what the sender's own tables say was done, and the consumer's do not. Do it there by hand.
//! 3. `synod outbox readmit CONSUMER --service HOST:PORT --author NAME --reason TEXT`: it gets what it has not acknowledged.
//!
//! # Messages to take back
//! 1. *Look* for the ID: `synod outbox list --service HOST:PORT` shows what is pending, for whom and why it waits; `synod outbox
//!    scheduled --service HOST:PORT` what waits for its time. A dead letter is discarded instead.
//! 2. `synod outbox cancel ID --service HOST:PORT --author NAME --reason TEXT`, with `--consumer NAME` for that one alone. A scheduled
//!    message never goes out. A pending one never takes effect, or does so before its consumer has heard of the cancellation: a copy may
//!    be on its way.
//! 3. `synod outbox records --service HOST:PORT` says which of the two it was, once the consumer was reached; and what else operators
//!    did, and why.
//!
//! # What to watch
//! | look at | it means, if it grows | then |
//! |---|---|---|
//! | [`Participant::in_doubt`](crate::Participant::in_doubt): ages above a few seconds | the coordinator is away, or an initiator died before its deadline | `synod status`; it ends by itself when a leader is back and the deadline has passed |
//! | `synod txn list --in-doubt` | commits that a database has not acknowledged, and branches that wait for an outcome | start the service that owns the database |
//! | `hazard_count` in `synod status` | a database lost or settled a branch behind Synod's back | compare the databases by hand, then `synod txn resolve GTID --settle …` |
//! | [`RedbResource::lock_counts`](crate::resource::redb::RedbResource::lock_counts): waiting | hot rows, or branches in doubt | shorter transactions; look at the ages above |
//! | [`Outbox::status`](crate::outbox::Outbox::status): `trouble`, `dead_count`, `stored_count` | a consumer gets nothing, and why | `synod outbox status` shows the same; see its text; [dead letters](#dead-letters) |
//! | [`Inbox::counts`](crate::inbox::Inbox::counts) | handlers are slower than what comes | faster handlers, more keys |
//!
//! # Testing
//! `synod dev` with ports of the system's choice is a coordinator for a test, which ends with it and leaves nothing behind. It
//! prints `ready` and the addresses once a leader serves.
//! ```no_run
//! use std::io::{BufRead as _, BufReader};
//! use std::process::{Child, Command, Stdio};
//!
//! struct Coordinator {
//!     process: Child,
//!     addresses: Vec<String>,
//! }
//!
//! impl Coordinator {
//!     fn start() -> Self {
//!         let mut process = Command::new("synod")
//!             .args(["dev", "--ports", "0,0,0"])
//!             .stdout(Stdio::piped())
//!             .spawn()
//!             .expect("`synod` is installed: cargo install --path coordinator");
//!         let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
//!         let ready = lines.map(|line| line.expect("text")).find(|line| line.starts_with("ready "));
//!         let list = ready.expect("a leader serves")["ready ".len()..].to_owned();
//!         let addresses = list.split(',').map(|address| format!("http://{address}")).collect();
//!         Self { process, addresses }
//!     }
//! }
//!
//! impl Drop for Coordinator {
//!     fn drop(&mut self) {
//!         let _ = self.process.kill();
//!         let _ = self.process.wait();
//!     }
//! }
//! ```
//! (After `kill` the temporary directory stays; end it with SIGTERM where that matters.)
//!
//! A participant takes its time from where the test says, a deadline's end for example; its network likewise:
//! ```no_run
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use synod::{Participant, ParticipantBuilder, UnixMillis, WallClock};
//!
//! fn with_clock(now: Arc<AtomicU64>) -> ParticipantBuilder {
//!     let clock = WallClock::new(move || UnixMillis(now.load(Ordering::Relaxed)));
//!     Participant::builder().clock(clock)
//! }
//! ```
//!
//! A store in memory loses power when it is told to, so a test sees what a crash leaves:
//! ```
//! use synod::resource::redb::{MemoryDisk, PowerLoss, RedbOptions};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let disk = MemoryDisk::default();
//! let open = || {
//!     let disk = disk.clone();
//!     RedbOptions::default().open_backend(move || disk.backend())
//! };
//! let store = open()?;
//! let mut tx = store.begin_local()?;
//! tx.put("orders", "order-1", "2 bolts").await?;
//! tx.commit().await?;
//! let mut lost = store.begin_local()?;
//! lost.put("orders", "order-2", "3 bolts").await?;
//!
//! disk.lose_power(PowerLoss::Lost);
//! drop((lost, store));
//! let rows = open()?.snapshot()?.scan("orders", "")?;
//! assert_eq!(rows.len(), 1);
//! # Ok::<_, synod::BoxError>(())
//! # }).unwrap();
//! ```
//! A store of your own is tested by the [conformance kit](crate::conformance), and the repository's own tests show services
//! as processes that are killed at named points (`tests/tests/process_crashes.rs`).
