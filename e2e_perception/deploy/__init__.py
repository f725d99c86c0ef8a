"""From a trained network to something a robot can run: contract, export, bundles, engines."""
