//! Panics of the thread that runs a seed. Most happen within a task of tokio, which would keep them to itself.

use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// The panics since the last call.
pub fn take() -> Vec<String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            print(info);
        }));
    });
    PANICS.take()
}
