import("/desk/arena.js").then((module) => module.start(element, server));
