import("/desk/desk.js").then((module) => module.start(element, server));
